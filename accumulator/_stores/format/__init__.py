"""What those who write and those who read agree on: names, layout, mark, checksums, and the zarr store.

No decision is made here, no thread started, and nothing is known of who writes or reads.
"""
