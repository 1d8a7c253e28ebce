"""Networks: the settings of `diffusers`' U-Net, and those of published teachers that `diffusers` has not."""
