"""What is known of a signal: its law, its histogram, the error of a quantizer on it, and regression on sums of it.

``laws`` describe a signal, ``streaming`` measures one in one pass, ``distortion`` splits the error of a quantizer by its
cause, and ``regression`` refits weights from sums.
"""
