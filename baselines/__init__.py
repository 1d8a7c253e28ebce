"""The methods that BOOT is compared with, one file each."""
