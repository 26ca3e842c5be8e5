"""Loaders: a file a `--loader`.

A new one is one file: the first line of its docstring is what `fastcat list loaders` says of it,
and a function of the file's name makes it:

    def NAME(
        dataset: Dataset, part: str, sampling: Sampling, device: torch.device,
        data_dir: Path, workers: int | None,
    ) -> Loader

part: "train" or "test".
sampling: which of its images, in what order, and their augmentation.
data_dir: folder for files that the loader writes once.
workers: processes or threads that read; None: as many as suit.
A `StreamedLoader` needs a `Reader` only: a function from the places of each batch to its images.
"""
