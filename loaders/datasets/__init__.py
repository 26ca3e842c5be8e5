"""Data sets with a name: a file each.

A new one is one file: the first line of its docstring is what `fastcat list datasets` says of it,
and a function of the file's name reads it:

    def NAME(data_dir: Path, progress: Progress | None) -> Dataset

data_dir: folder where downloads are looked for and put.
progress: called with (done, total) during a download.
Everything else about it stands there too: address and MD5 of its files, the package that reads
them, `crop_pad` and `flip`. Files whose name begins with an underscore are shared by several.
"""
