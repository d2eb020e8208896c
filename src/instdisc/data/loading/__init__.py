"""Pixels on their way to training: kept in memory or in a file, or decoded by workers; batches in an order."""
