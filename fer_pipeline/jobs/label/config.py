"""The configuration of a labelling job."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fer_pipeline.archive.files import Pages
from fer_pipeline.base.config import MODEL, PLACE, Config
from fer_pipeline.base.memory import MAX_FILE_BYTES, MAX_PIXELS, MEMORY_BYTES
from fer_pipeline.faces.detectors import DETECTOR_HELP, DetectorName
from fer_pipeline.labelling.schemas import RetriedStatus
from fer_pipeline.models.bundle import EMBEDDED


def _code_page(name: str) -> str:
    try:
        b"".decode(name)
    except LookupError as error:
        raise ValueError(f"'{name}' is not an encoding of text that Python has, such as cp932, gbk, cp866 or big5") from error
    return name


ZipEncoding = Annotated[str, AfterValidator(_code_page)]
"""The name of a code page."""


class LabelConfig(Config):
    """Label the apparent expression of every face in an archive. Run the same command again to continue."""

    source: Annotated[str, PLACE]
    """Folder, tar, zip, Parquet file, video or s3:// URL; a folder may hold any mix of them. Or a list of files: --uri-column."""
    out: Annotated[str, PLACE]
    """Run folder. It is created; if it holds this run, the run continues."""
    uri_column: str | None = None
    """The source is a list, a Parquet, CSV or text file: the column with the files' paths, relative to the list, or URLs."""
    base: Annotated[tuple[str, ...], PLACE] = ()
    """Folders or prefixes below which the files of a list must be; by default the folder of the list."""
    keep: tuple[str, ...] = ()
    """Columns of a list to keep, for each record, in the tables of the run."""
    sample: int | None = Field(None, ge=1)
    """Label only this many of the records, chosen at random."""
    limit: int | None = Field(None, ge=1)
    """Label only the first records, this many: for a first try."""
    include: tuple[str, ...] = ()
    """Globs on the path below the source: only records that match one are labelled. `*` matches `/` too."""
    exclude: tuple[str, ...] = ()
    """Globs on the path below the source: records and containers that match one are skipped."""
    fps: float = Field(1.0, gt=0, le=1000)
    """Frames to sample per second of video."""
    pages: Pages = "largest"
    """Pages of a TIFF to label: the largest, or all, each as a record, for scans."""
    zip_encoding: ZipEncoding | None = None
    """Code page of the file names in zips, such as `cp932` for Japanese Windows, where they are not UTF-8."""
    image_column: str | None = None
    """Column of Parquet files that holds the images; by default it is found by its name and type."""
    model: Annotated[str, MODEL] = EMBEDDED
    """Folder of a model bundle, NAME@ALIAS of a registry, or `embedded`."""
    detector: DetectorName = Field("auto", description=f"{DETECTOR_HELP}.")
    detector_weights: Annotated[str | None, PLACE] = None
    """File of the detector's weights, if it is not in $FER_PIPELINE_MODELS or the cache."""
    detect_px: int = Field(640, ge=32)
    """Long side, in pixels, to which images, and the tiles of panoramas, are shrunk for detection."""
    detection_threshold: float | None = Field(None, ge=0, le=1)
    """Minimum detection score of a face; by default the detector's own."""
    uncertain_below: float | None = Field(None, ge=0, le=1)
    """Confidence below which a label is marked uncertain; by default the model's own."""
    min_quality: float | None = Field(None, gt=0, le=1)
    """Quality of the picture below which a label is marked uncertain, too; by default none is."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Arithmetic of the classifier. `auto`: int8 on CPUs if the model has it, else what the first worker's processor supports."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """Larger images are not decoded (`too_large`)."""
    max_bytes: int = Field(MAX_FILE_BYTES, ge=1)
    """Larger files are not read (`too_large`)."""
    shard_records: int | None = Field(None, ge=1)
    """Maximum records in a shard, the unit of work and of commit. By default 64, or fewer if the run has few records."""
    shard_bytes: int = Field(256 * 1024**2, ge=1)
    """Maximum bytes in a shard."""
    max_failure_rate: float = Field(0.5, ge=0, le=1)
    """Share of records that may fail before the run ends with exit code 3."""
    record_timeout_s: float = Field(60.0, gt=0)
    """Time limit for decoding, detection and alignment of one record; then it is `timed_out`."""
    record_memory_bytes: int = Field(MEMORY_BYTES, ge=256 * 1024**2)
    """Memory that a worker may use beyond what it has at its start; a record that needs more is `too_large`."""
    max_members: int = Field(10_000_000, ge=1)
    """Maximum records of one container; the rest of a larger one is not read."""
    retry_status: tuple[RetriedStatus, ...] = ()
    """Label shards again that hold rows of these statuses; with a table, ignore --max-attempts for records of these statuses."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs, or the share of one, for each worker, which detects and classifies on it; its cores fetch, decode and cut.
    0: no GPU is used."""
    num_gpus: float | None = Field(None, gt=0)
    """Maximum GPUs to use and to request from an autoscaler; by default all of the cluster's are used and one is requested."""
    thumbnails: bool = True
    """Show pictures of faces in the report."""
    table: Annotated[str | None, PLACE] = None
    """Published table: only records that it does not hold are labelled, and labels of bytes that it knows are carried over."""
    reuse_faces: Annotated[str | None, PLACE] = None
    """Finished run or published table whose faces are labelled without detecting them again, where the detector, all settings
    but the model, and the bytes are the same. A table's own faces are reused by themselves."""
    max_vanished: float = Field(0.2, ge=0, le=1)
    """Share of the source's rows in the table that may be missing from the source before the run is refused."""
    max_attempts: int = Field(3, ge=1, le=100)
    """Number of runs that try a failed record while its file stays the same."""
    relabel_budget: int | None = Field(None, ge=0)
    """Maximum rows of another model, detector or settings to label again, oldest first; by default all of them."""
