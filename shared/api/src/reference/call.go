package canopy

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Connect uses a client certificate and a person's token.
func Connect(url, ca, cert, key, tokenFile string) (*nats.Conn, error) {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, err
	}
	return nats.Connect(url, nats.TLSHandshakeFirst(), nats.RootCAs(ca),
		nats.ClientCert(cert, key), nats.Token(strings.TrimSpace(string(token))))
}

// Call asks an endpoint (service.class.verb) at a target: a host, or "_".
func Call(nc *nats.Conn, me, endpoint, target string, request, reply any, timeout time.Duration) error {
	service, _, _ := strings.Cut(endpoint, ".")
	responder := "h-" + target + "-" + service
	if target == "_" {
		responder = "s-" + service
	}
	payload, err := json.Marshal(request)
	if err != nil {
		return err
	}
	id := nats.NewInbox()[len("_INBOX."):]
	message := nats.NewMsg(fmt.Sprintf("canopy.v1.rpc.%s.%s.%s", endpoint, target, me))
	message.Reply = fmt.Sprintf("_INBOX.%s.%s.%s", me, responder, id)
	message.Data = payload
	message.Header.Set("Content-Type", "application/json")
	message.Header.Set("Canopy-Request-Id", id)
	message.Header.Set("Canopy-Deadline", strconv.FormatInt(time.Now().Add(timeout).UnixMilli(), 10))
	message.Header.Set("Canopy-Timeout", strconv.FormatInt(timeout.Milliseconds(), 10))
	answers, err := nc.SubscribeSync(message.Reply)
	if err != nil {
		return err
	}
	defer answers.Unsubscribe()
	if err := nc.PublishMsg(message); err != nil {
		return err
	}
	answer, err := answers.NextMsg(timeout)
	if err != nil {
		return err // nats.ErrNoResponders: nobody serves it
	}
	if code := answer.Header.Get("Nats-Service-Error-Code"); code != "" {
		return fmt.Errorf("%s: %s", code, answer.Data)
	}
	return json.Unmarshal(answer.Data, reply)
}
