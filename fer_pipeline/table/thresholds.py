"""The thresholds of the audit, one section of the configuration."""

from pydantic import Field

from fer_pipeline.base.config import Config


class Thresholds(Config):
    """The largest values with which a night is still published. Drifts count only what exceeds chance."""

    failed: float = Field(0.2, ge=0, le=1)
    """Share of records that failed."""
    vanished: float = Field(0.1, ge=0, le=1)
    """Share of the source's rows in the table that vanished from the source."""
    without_faces: float = Field(0.1, ge=0, le=1)
    """Difference between the shares of images without faces."""
    faces_per_image: float = Field(0.2, ge=0)
    """Population stability index of the number of faces in an image."""
    uncertain: float = Field(0.1, ge=0, le=1)
    """Difference between the shares of uncertain labels."""
    expressions: float = Field(0.02, ge=0, le=1)
    """Jensen-Shannon divergence of the mix of expressions, in bits."""
    confidence: float = Field(0.2, ge=0)
    """Population stability index of confidences."""
    churn: float = Field(0.35, ge=0, le=1)
    """Share of faces in unchanged images whose label the new model changed."""
