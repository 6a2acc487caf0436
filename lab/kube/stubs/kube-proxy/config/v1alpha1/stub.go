// SPDX-License-Identifier: GPL-3.0-or-later
// SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors

// Package v1alpha1 is our own stand-in for k8s.io/kube-proxy/config/v1alpha1: only
// the fields that cmd/kubeadm reads or writes. (kubeadm token, certs and kubeconfig
// never use it; only the kube-proxy addon and user-given KubeProxyConfiguration do.)
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	componentbase "k8s.io/component-base/config/v1alpha1"
)

const GroupName = "kubeproxy.config.k8s.io"

var (
	SchemeGroupVersion = schema.GroupVersion{Group: GroupName, Version: "v1alpha1"}
	SchemeBuilder      = runtime.NewSchemeBuilder(func(s *runtime.Scheme) error {
		s.AddKnownTypes(SchemeGroupVersion, &KubeProxyConfiguration{})
		return nil
	})
	AddToScheme = SchemeBuilder.AddToScheme
)

type KubeProxyConfiguration struct {
	metav1.TypeMeta `json:",inline"`

	FeatureGates     map[string]bool                             `json:"featureGates,omitempty"`
	ClientConnection componentbase.ClientConnectionConfiguration `json:"clientConnection"`
	BindAddress      string                                      `json:"bindAddress"`
	ClusterCIDR      string                                      `json:"clusterCIDR"`
}

func (in *KubeProxyConfiguration) DeepCopyInto(out *KubeProxyConfiguration) {
	*out = *in
	if in.FeatureGates != nil {
		out.FeatureGates = make(map[string]bool, len(in.FeatureGates))
		for k, v := range in.FeatureGates {
			out.FeatureGates[k] = v
		}
	}
}

func (in *KubeProxyConfiguration) DeepCopyObject() runtime.Object {
	out := new(KubeProxyConfiguration)
	in.DeepCopyInto(out)
	return out
}
