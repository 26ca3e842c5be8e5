"""Images in files: folders of images, .npz, parquet, and what is written here, .packed and .beton.

Each file either reads a `Dataset` that can be mapped, or makes a `Source` that is packed first.
"""
