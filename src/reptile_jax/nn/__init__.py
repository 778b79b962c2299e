"""The paper's networks and losses, and layers that stay fast inside an inner loop."""

from reptile_jax.nn.convolution import conv_general_dilated as conv_general_dilated
from reptile_jax.nn.fields import Field as Field
from reptile_jax.nn.layers import batch_norm as batch_norm
from reptile_jax.nn.layers import max_pool as max_pool
from reptile_jax.nn.losses import cross_entropy as cross_entropy
from reptile_jax.nn.losses import squared_error as squared_error
from reptile_jax.nn.networks import MLP as MLP
from reptile_jax.nn.networks import BatchNorm as BatchNorm
from reptile_jax.nn.networks import Conv as Conv
from reptile_jax.nn.networks import ConvNet as ConvNet
from reptile_jax.nn.networks import classifier_mask as classifier_mask
from reptile_jax.nn.networks import mini_imagenet_net as mini_imagenet_net
from reptile_jax.nn.networks import omniglot_net as omniglot_net
from reptile_jax.nn.precision import in_bfloat16 as in_bfloat16
from reptile_jax.nn.prototypes import from_prototypes as from_prototypes
from reptile_jax.nn.prototypes import prototype_loss as prototype_loss
