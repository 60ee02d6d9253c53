"""Archives (PACS): images in by C-STORE, C-GET and WADO-RS, results out by C-STORE and STOW-RS.

`addresses` says where an archive is, `archives` what one can be asked; `dimse_*` and `dicomweb` are the two ways of
asking. The listener: `reception` puts what is sent into the `spool`, `arrivals` says which series are complete, the
batch engine segments them, `outbox` remembers what has to be sent, `courier` sends it. What is where in the spool is
the only state: a listener that was killed goes on from there.

pynetdicom, dicomweb-client, requests and prometheus-client are an extra, and are imported where they are used.
"""
