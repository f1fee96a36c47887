"""What tests share: oracles, stores that were tampered with, processes that are killed, replayed crashes."""
