"""The thresholds of the audit: one table of the configuration."""

from pydantic import Field

from fer_pipeline.core.config import Config


class Thresholds(Config):
    """What a night may come to before it is held. Drifts are what exceeds chance."""

    failed: float = Field(0.2, ge=0, le=1)
    """Share of records that failed."""
    vanished: float = Field(0.1, ge=0, le=1)
    """Share of the source's rows in the table that vanished."""
    without_faces: float = Field(0.1, ge=0, le=1)
    """Difference of the share of images without faces."""
    faces_per_image: float = Field(0.2, ge=0)
    """Population stability index of the number of faces in an image."""
    uncertain: float = Field(0.1, ge=0, le=1)
    """Difference of the share of uncertain labels."""
    expressions: float = Field(0.02, ge=0, le=1)
    """Jensen-Shannon divergence of the mix of expressions, in bits."""
    confidence: float = Field(0.2, ge=0)
    """Population stability index of confidences."""
    churn: float = Field(0.35, ge=0, le=1)
    """Share of faces whose label another model changed while the bytes did not."""
