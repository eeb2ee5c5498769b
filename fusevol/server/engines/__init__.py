"""Engines translate between the kernel's requests and `FileSystem`; they decide nothing."""
