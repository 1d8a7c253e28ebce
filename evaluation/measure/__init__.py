"""Features, distances and speeds of samples."""
