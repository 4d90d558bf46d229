"""Calling Claude: requests, prices, the disk cache with its budget, Messages and Message Batches."""
