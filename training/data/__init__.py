"""Images: stores, order, augmentation and the layouts they are read from."""
