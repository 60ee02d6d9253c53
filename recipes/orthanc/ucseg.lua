-- Orthanc sends every CT series that is complete to ucseg; ucseg sends SEG, Parametric Map and report back.
--
-- 1. Start the listener beside Orthanc:
--        ucseg pacs listen --aet UCSEG --port 11112 --forward ORTHANC@localhost:4242
-- 2. In Orthanc's configuration name it and this file, and restart Orthanc:
--        "DicomModalities": { "ucseg": ["UCSEG", "localhost", 11112] },
--        "LuaScripts": [ "/etc/orthanc/ucseg.lua" ],
--        "StableAge": 60
--
-- A series counts as complete when nothing of it came for StableAge seconds. What ucseg itself made is not sent, so
-- nothing goes round in circles. A listener that is down or full is tried again at the next change of the series; see
-- the log of Orthanc ("ucseg:").

MODALITY = 'CT'

function OnStableSeries(seriesId, tags, metadata)
   if tags['Modality'] ~= MODALITY then
      return
   end
   local job = ParseJson(RestApiPost('/modalities/ucseg/store', DumpJson({
      Resources = { seriesId },
      Synchronous = false,
      Permissive = true
   }, true)))
   if job == nil or job['ID'] == nil then
      PrintRecursive('ucseg: series ' .. seriesId .. ' could not be queued')
   end
end
