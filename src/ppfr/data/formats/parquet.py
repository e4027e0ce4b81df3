"""The packed form of a training set: one Parquet file that holds the encoded images with their names and identities.

The columns are `path` and `identity` (strings), `image` (the bytes of a JPEG or PNG file), `size` (its length),
`crc32c` (its checksum) and `square` (whether it is as high as wide). Any Parquet reader opens the file. A row group's
images are one page, neither compressed nor encoded otherwise, so that the position of each follows from the sizes: an
image is read at random by one read of the file, and opening a set of millions reads only the small columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppfr.data.faceset import Indices
from ppfr.data.formats.record_sets.files import DataFiles
from ppfr.data.formats.records import Records, files_fingerprint
from ppfr.util.errors import DataError

SUFFIX = ".parquet"
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),
        # optional values would put bytes of their own into the page
        pa.field("image", pa.binary(), nullable=False),
        pa.field("size", pa.uint32(), nullable=False),
        pa.field("crc32c", pa.uint32(), nullable=False),
        pa.field("square", pa.bool_(), nullable=False),
    ]
)
_GROUP_ROWS = 512
_GROUP_BYTES = 1 << 26
_LENGTH_BYTES = 4


class ParquetFile:
    """Appends rows of `SCHEMA` to a new Parquet file, a row group at a time."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(
            path,
            SCHEMA,
            use_dictionary=["identity"],
            compression={name: "none" if name == "image" else "zstd" for name in SCHEMA.names},
            write_statistics=False,
            # beyond any row group, so that each is one page
            data_page_size=1 << 30,
            write_page_checksum=True,
        )
        self._rows: list[tuple[str, str, bytes, int, int, bool]] = []
        self._bytes = 0

    def add(self, path: str, identity: str, image: bytes, *, square: bool) -> None:
        """Append an image."""
        self._rows.append((path, identity, image, len(image), google_crc32c.value(image), square))
        self._bytes += len(image)
        if len(self._rows) == _GROUP_ROWS or self._bytes > _GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._rows:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        columns = zip(*self._rows, strict=True)
        self._writer.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA))
        self._rows, self._bytes = [], 0


class ParquetRecords(Records):
    """The images of a Parquet file, each read when it is asked for and compared with its checksum.

    Raises DataError for a file that cannot be read, or that this program has not written.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"{path.parent.name}/{path.stem}"
        self.path = path
        self.named = True
        self.skipped = []
        self._files = DataFiles([path])
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                if not file.schema_arrow.equals(SCHEMA):
                    raise DataError(
                        f"{path}: has the columns {', '.join(file.schema_arrow.names)}; expected the Parquet file of "
                        "faces that ppfr convert or ppfr prepare writes"
                    )
                self.names = _Paths(path, file.metadata.num_rows)
                small = file.read(["identity", "size", "crc32c", "square"])
                groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            if not len(small):
                raise DataError(f"{path}: holds no images")
            known = small["identity"].combine_chunks().dictionary_encode()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
        people = known.dictionary.to_pylist()
        order = np.argsort(np.array(people, object), kind="stable")
        self.identities = [people[row] for row in order.tolist()]
        self.labels = np.argsort(order)[known.indices.to_numpy()].astype(np.int64)
        self.oblong = np.flatnonzero(~small["square"].to_numpy())
        self._checks = small["crc32c"].to_numpy()
        self._sizes = small["size"].to_numpy().astype(np.int64)
        self._offsets = _offsets(groups, self._sizes)

    def data(self, row: int) -> bytes:
        size = int(self._sizes[row])
        stored = self._files.read(0, int(self._offsets[row]), _LENGTH_BYTES + size)
        image = stored[_LENGTH_BYTES:]
        if int.from_bytes(stored[:_LENGTH_BYTES], "little") != size or google_crc32c.value(image) != self._checks[row]:
            raise DataError("the image has changed since it was written")
        return image

    def place(self, row: int) -> str:
        return f"{self.path}, row {row}"

    def fingerprint(self) -> str:
        return files_fingerprint([self.path])


def _offsets(groups: Sequence[Any], sizes: Indices) -> Indices:
    """Where the value of each row begins: those of a row group are the end of its page, one behind the other."""
    image = SCHEMA.get_field_index("image")
    columns = [group.column(image) for group in groups]
    ends = np.array([column.data_page_offset + column.total_compressed_size for column in columns], np.int64)
    after = np.cumsum(sizes + _LENGTH_BYTES)
    last_rows = np.cumsum([group.num_rows for group in groups]) - 1
    group_of = np.repeat(np.arange(len(groups)), [group.num_rows for group in groups])
    offsets: Indices = (ends - after[last_rows])[group_of] + after - sizes - _LENGTH_BYTES
    return offsets


class _Paths(Sequence[str]):
    """The column `path`, which is read when the first name is asked for: training needs none."""

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self._rows = rows

    @cached_property
    def _values(self) -> Any:
        try:
            return pq.read_table(self._path, columns=["path"], page_checksum_verification=True)["path"].combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self._path}: cannot be read as Parquet ({error})") from error

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int | slice) -> str | list[str]:  # type: ignore[override]
        if isinstance(row, slice):
            return list(self._values[row].to_pylist())
        return str(self._values[range(len(self))[row]].as_py())
