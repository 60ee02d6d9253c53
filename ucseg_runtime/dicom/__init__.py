"""DICOM in and out: the only part that knows pydicom and highdicom.

Reading: `series.scan` finds the series of a folder, `selection.select_series` chooses one and says why not the others,
`reader.read_volume` turns it into voxels. The writers load highdicom, so nothing is imported here: the program that
decodes pixels in a process of its own has to start quickly.
"""
