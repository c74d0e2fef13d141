"""Files: written whole or not at all, archives that cannot do harm, addresses without passwords."""
