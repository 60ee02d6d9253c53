{{- define "ucseg.name" -}}
{{- printf "%s-ucseg" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "ucseg.selector" -}}
app.kubernetes.io/name: ucseg
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ucseg.labels" -}}
{{ include "ucseg.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "ucseg.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag }}{{ if .digest }}@{{ .digest }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "ucseg.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  privileged: false
  readOnlyRootFilesystem: true
{{- end -}}

{{- define "ucseg.models" -}}
name: models
mountPath: /models
{{- if eq .Values.modelRepository.source "persistentVolumeClaim" }}
{{- with .Values.modelRepository.persistentVolumeClaim.subPath }}
subPath: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "ucseg.canary" -}}
exec:
  command: [ucseg-serve, health, /models, --url, "http://127.0.0.1:8000", --timeout, {{ .Values.probes.canarySeconds | quote }}]
{{- /* Python itself starts, and on a busy node that takes its time. */}}
timeoutSeconds: {{ add .Values.probes.canarySeconds 30 }}
{{- end -}}
