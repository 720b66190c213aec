"""What kawai takes of the disk, and how it gives it back."""
