"""Pickles are read as NumPy reads them, if they contain only data."""

import pickle

import numpy as np
import pytest

from reptile_jax.datasets.pickles import load_arrays


@pytest.mark.parametrize("dtype", ["<u2", ">i4", "<f8", "?", "<U3", "S2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, dtype, order):
    array = np.asarray(np.arange(6).reshape(2, 3).astype(dtype), order=order)
    for protocol in range(6):
        path = tmp_path / "x.pkl"
        scalar = array.reshape(-1)[1]
        path.write_bytes(pickle.dumps({"a": {"b": array}, "c": scalar}, protocol))
        read = load_arrays(path)
        np.testing.assert_array_equal(read["a"]["b"], array)
        assert read["a"]["b"].dtype == array.dtype
        assert read["c"] == scalar


class CraftedArray:
    """Its dtype says of itself that it holds no objects, and its bytes are pointers to nowhere."""

    class Dtype:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    def __reduce__(self):
        make = np.zeros(0).__reduce__()[0]
        return make, (np.ndarray, (0,), b"b"), (1, (4,), self.Dtype(), False, b"A" * 32)


def test_arrays_of_pointers_are_refused(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"image_data": CraftedArray(), "class_dict": {}}))
    with pytest.raises(ValueError, match=r"cannot read .*x\.pkl: .*an array of O8, not of numbers"):
        load_arrays(path)
