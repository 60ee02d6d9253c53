"""Segmentation of DICOM studies with dual-subnet, uncertainty-aware models; needs neither torch nor CUDA."""
