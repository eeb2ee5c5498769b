"""What fusevol takes in time, memory and CPU, measured with a real API server: `./scripts/bench`."""
