"""Performance: constants kept on the device, matrix multiplication by oneDNN, native bfloat16, malloc settings."""
