{{- define "site.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- define "site.pod" -}}
restartPolicy: Never
containers:
- name: step
  image: {{ .Values.image | quote }}
  command: ["true"]
{{- end -}}
