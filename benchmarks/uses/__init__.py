"""Uses beyond images: what a learned initialisation gains, against published figures."""
