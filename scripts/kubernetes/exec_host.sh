#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What `launch --ssh` calls in place of ssh: exec_host.sh POD LINE. With -i, as a process ends with its launcher's input.
exec "${KUBECTL:-/opt/kube/kubectl}" exec -i "$1" --container mpi -- /bin/sh -c "$2"
