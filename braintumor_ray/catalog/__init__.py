"""The catalog: one row per scan of an archive, its labels, and its identities as hashes."""
