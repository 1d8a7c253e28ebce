"""BOOT: data-free distillation by bootstrapping (Gu et al., arXiv 2306.05544)."""
