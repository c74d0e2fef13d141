"""Performance: constants kept on the device, matrix multiplication by oneDNN, malloc settings."""
