// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/controlplane"
)

// TokenAudience is the one that tokens for a control plane have: ambient section 7.
const TokenAudience = "istio-ca"

// Extra keys of a reviewed token that is bound to a pod.
const (
	extraPodName = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
)

const (
	// reviewLasts is for how long a token that was good is not asked about again.
	reviewLasts = time.Minute
	// refusalLasts is the same for one that was not: long enough that a caller who tries on and on costs the API little, and
	// short enough that one who was refused by mistake is let in soon.
	refusalLasts = 5 * time.Second
	// trustLasts is for how long a token that was good is asked about whatever else its caller shows.
	trustLasts  = time.Hour
	maxReviews  = 4096
	reviewLimit = 10 * time.Second
)

// Tokens tells whose a service account token is. Safe for concurrent use.
type Tokens struct {
	client  kubernetes.Interface
	cluster *Cluster
	// trusted are the service accounts of node proxies, NAMESPACE/NAME.
	trusted []string

	callers *callers
	asking  singleflight.Group
	// By the token's hash. Tokens that are no good have a place of their own, so that they push out no good ones.
	good, bad *cache.LRUExpireCache
	// wereGood are hashes of tokens whose holder shares a caller's address with others that show bad ones.
	wereGood *cache.LRUExpireCache
}

// review is what the API said of a token.
type review struct {
	refused         error  // why it is not good; then the rest is empty
	account         string // NAMESPACE/NAME
	podName, podUID string
}

// NewTokens trusts the given service accounts, NAMESPACE/NAME, to act for the pods of their node. The client should be for
// nothing else: callers decide how often it is used.
func NewTokens(client kubernetes.Interface, cluster *Cluster, trusted []string) *Tokens {
	return &Tokens{client: client, cluster: cluster, trusted: trusted, callers: newCallers(), good: cache.NewLRUExpireCache(maxReviews), bad: cache.NewLRUExpireCache(maxReviews), wereGood: cache.NewLRUExpireCache(maxReviews)}
}

// Admit returns the node that the token's pod is on. The token must be of audience istio-ca, of a trusted service account,
// and bound to a pod that the cluster has. The error is of code Unavailable if the API could not be asked, and
// ResourceExhausted if it will not be for a caller who had it asked too often; ctx is that of a gRPC call.
func (t *Tokens) Admit(ctx context.Context, token string) (node string, err error) {
	r, err := t.review(ctx, token)
	if err != nil {
		return "", err
	}
	if !slices.Contains(t.trusted, r.account) {
		return "", fmt.Errorf("service account %s is none of the node proxies' (%s)", r.account, strings.Join(t.trusted, ", "))
	}
	if r.podUID == "" {
		return "", errors.New("the token is not bound to a pod, so that it does not tell of which node it is")
	}
	namespace, name, _ := strings.Cut(r.account, "/")
	pod := t.cluster.Snapshot().Pods[controlplane.Name{Namespace: namespace, Name: r.podName}]
	switch {
	case pod == nil || string(pod.UID) != r.podUID:
		return "", fmt.Errorf("the token's pod %s/%s is not known (yet)", namespace, r.podName)
	case account(pod.Pod) != name || pod.Spec.NodeName == "" || finished(pod.Pod):
		return "", fmt.Errorf("the token's pod %s/%s does not run as %s on a node", namespace, r.podName, name)
	}
	return pod.Spec.NodeName, nil
}

// review asks the API about a token, unless it has just answered, or the token says itself that it is no good.
func (t *Tokens) review(ctx context.Context, token string) (review, error) {
	key := sha256.Sum256([]byte(token))
	for _, known := range []*cache.LRUExpireCache{t.good, t.bad} {
		if r, ok := known.Get(key); ok {
			return r.(review), r.(review).refused
		}
	}
	if err := checkClaims(token, t.trusted); err != nil {
		return review{}, err
	}
	if _, wasGood := t.wereGood.Get(key); !wasGood && !t.callers.admit(ctx) {
		return review{}, status.Error(codes.ResourceExhausted, "too many tokens of this caller were asked about; wait some seconds")
	}
	r, err, _ := t.asking.Do(string(key[:]), func() (any, error) { return t.ask(token, key) })
	if err != nil {
		return review{}, err
	}
	return r.(review), r.(review).refused
}

// ask is for all who show the token at this moment, and ends with none of them.
func (t *Tokens) ask(token string, key [sha256.Size]byte) (review, error) {
	ctx, cancel := context.WithTimeout(context.Background(), reviewLimit)
	defer cancel()
	answer, err := t.client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{TokenAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		// Not the caller's fault, and nothing to remember.
		return review{}, status.Errorf(codes.Unavailable, "the Kubernetes API cannot be asked about the token: %v", err)
	}
	r := reviewOf(&answer.Status)
	if r.refused != nil {
		t.bad.Add(key, r, refusalLasts)
		t.wereGood.Remove(key)
	} else {
		t.good.Add(key, r, reviewLasts)
		t.wereGood.Add(key, nil, trustLasts)
	}
	return r, nil
}

func reviewOf(answer *authenticationv1.TokenReviewStatus) review {
	no := func(format string, args ...any) review {
		return review{refused: fmt.Errorf(format, args...)}
	}
	if !answer.Authenticated || !slices.Contains(answer.Audiences, TokenAudience) {
		return no("the token is not valid for audience %s: %s", TokenAudience, answer.Error)
	}
	user := answer.User
	parts := strings.Split(user.Username, ":") // system:serviceaccount:NAMESPACE:NAME
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return no("%q is no service account", user.Username)
	}
	return review{
		account: parts[2] + "/" + parts[3],
		podName: first(user.Extra[extraPodName]), podUID: first(user.Extra[extraPodUID]),
	}
}

func first(values authenticationv1.ExtraValue) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}
