"""Measuring videos."""

from .api import io


class VideoMetrics(io.ComfyNode):
    """Numbers and a plot of a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="WeftVideoMetrics",
            display_name="Video Metrics (Weft)",
            category="Weft/Analysis",
            description="Measures a video without any model: motion, consistency of its frames and flicker; beside a "
            "second video also PSNR and SSIM in RGB and YUV.",
            search_aliases=["psnr", "ssim", "flicker", "consistency", "quality", "compare videos", "weft"],
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video, at least two."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Frames of the same size and number, such as an original: PSNR and SSIM are measured "
                    "beside them, frame by frame.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="PLOT",
                    tooltip="Motion, consistency and SSIM over time, each up to its largest value, and the video's "
                    "middle row over time.",
                ),
                io.String.Output(
                    display_name="REPORT",
                    tooltip="A line for each measure: its mean, and its smallest and largest value. Show it with "
                    "Preview as Text.",
                ),
            ],
        )

    @classmethod
    def execute(cls, images: object, reference: object = None) -> io.NodeOutput:
        """Measure and draw."""
        from ..kernels.analysis.report import video_report

        return io.NodeOutput(*video_report(images, reference))


NODES = [VideoMetrics]
