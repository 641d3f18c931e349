{{/* The name of all objects. */}}
{{- define "fleet.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "fleet.labels" -}}
app.kubernetes.io/name: fleet-forecast
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fleet.secret" -}}
{{ .Values.existingSecret | default (include "fleet.name" .) }}
{{- end }}

{{- define "fleet.models" -}}
{{ .Values.models.existingClaim | default (printf "%s-models" (include "fleet.name" .)) }}
{{- end }}

{{/* The address of a shard; its number is from 1, the ordinal of its pod from 0. */}}
{{- define "fleet.shard" -}}
{{- $name := include "fleet.name" .root -}}
{{ $name }}-{{ .ordinal }}.{{ $name }}-shards:8000
{{- end }}

{{- define "fleet.container" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}
