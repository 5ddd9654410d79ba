"""From a model to its graph: by torch.fx (``tracing``) or torch.export (``exported``), in one form (``passes``), checked.

``preparation`` looks at the model first; ``capturing`` chooses the way and compares what the graph and the model compute.
"""

from polarspike.capture.capturing import Route, capture, check_capture, graph_inputs

__all__ = ["Route", "capture", "check_capture", "graph_inputs"]
