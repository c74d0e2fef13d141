"""File I/O: atomic writes, safe archives, addresses without passwords."""
