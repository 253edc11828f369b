"""Merges an adapter into the full-precision weights of its base, shard by shard."""
