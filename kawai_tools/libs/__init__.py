"""llama.cpp builds: detected for, planned, fetched, unpacked, probed and switched."""
