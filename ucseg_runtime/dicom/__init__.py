"""DICOM in and out: the only part that knows pydicom and highdicom.

Reading: `scan` finds the series of a folder, `select_series` chooses one and says why not the others, `read_volume`
turns it into voxels. Writers stand in modules of their own and are imported from there, because they load highdicom.
"""
