"""From files to pixels: catalog, decode, duplicates, splits, augmentation, phantoms."""
