"""What reproduces the published BEVFormer, faults included; chosen by name, never by default."""
