"""Reads all of the HDF5 in a saved model, as a program of its own (see `load.py`).

    python hdf5_child.py FILE

FILE is an `.h5` file or a `.keras` archive of such. libhdf5 ends the process it is in at some
damaged files; here that is this one. Its exit status is 0 if everything could be read.
"""

import sys
import tempfile
import zipfile

import h5py


def read(path: str) -> None:
    with h5py.File(path, "r") as file:
        _read_object("/", file)
        file.visititems(_read_object)


def _read_object(name: str, found: h5py.Group | h5py.Dataset) -> None:
    for key in found.attrs:
        found.attrs[key]
    if isinstance(found, h5py.Dataset) and found.ndim:
        for k in range(found.shape[0]):  # in parts: what a damaged file claims may be huge
            found[k]


def main(path: str) -> None:
    if not zipfile.is_zipfile(path):
        read(path)
        return
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        for info in archive.infolist():
            if info.filename.endswith(".h5"):
                read(archive.extract(info, folder))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
