"""What makes the same arithmetic faster: constants kept on the device, oneDNN's products, memory that is kept."""
