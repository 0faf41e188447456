"""Pictures in tiles, each with a network of its own, for which memory would be too small as a whole."""
