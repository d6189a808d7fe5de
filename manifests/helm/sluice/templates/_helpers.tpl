{{- define "sluice.labels" -}}
app.kubernetes.io/part-of: sluice
{{- end -}}

{{/* image of .name, by the digest at .digest if there is one. */}}
{{- define "sluice.image" -}}
{{- $image := .root.Values.image -}}
{{- if .digest -}}
{{ $image.registry }}/{{ .name }}@{{ .digest }}
{{- else -}}
{{ $image.registry }}/{{ .name }}:{{ $image.tag }}
{{- end -}}
{{- end -}}

{{/* Where ztunnels find xDS and CA; empty: at the agent's socket. */}}
{{- define "sluice.xdsAddress" -}}
{{- if eq .Values.controlPlane.mode "istiod" -}}
https://{{ .Values.controlPlane.istiod.address }}
{{- else if eq .Values.controlPlane.mode "api" -}}
https://sluice-controlplane.{{ .Release.Namespace }}.svc:15012
{{- end -}}
{{- end -}}

{{- define "sluice.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* "true" if the agent has to look for the CNI folders on the node. */}}
{{- define "sluice.searchesNode" -}}
{{- if or (eq .Values.cni.confDir "auto") (eq .Values.cni.binDir "auto") }}true{{ end -}}
{{- end -}}
