"""The configuration: its blocks, its variants, the experiment that they make."""
