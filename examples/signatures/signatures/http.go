package signatures

import (
	"encoding/json"
	"io"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	signaturesv1 "github.com/scribe-mail/keysvc/examples/signatures/gen/scribe/signatures/v1"
)

// HTTP returns the service as an http.Handler. The requirement of each route is beside its
// handler.
func (s *Service) HTTP(guard *keyauth.Guard) (http.Handler, error) {
	read, write, remove := keyauth.Scope("signatures:read"), keyauth.Scope("signatures:write"), keyauth.Scope("signatures:delete")
	return keyauthhttp.NewMux(guard, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"GET /v1/signatures": {Requirement: read, Handler: handle(func(r *http.Request) (proto.Message, error) {
			return s.ListSignatures(r.Context(), &signaturesv1.ListSignaturesRequest{})
		})},
		"POST /v1/signatures": {Requirement: write, Handler: handle(func(r *http.Request) (proto.Message, error) {
			request := &signaturesv1.CreateSignatureRequest{}
			if err := readBody(r, request); err != nil {
				return nil, err
			}
			response, err := s.CreateSignature(r.Context(), request)
			return response.GetSignature(), err
		})},
		"GET /v1/signatures/{id}": {Requirement: read, Handler: handle(func(r *http.Request) (proto.Message, error) {
			response, err := s.GetSignature(r.Context(), &signaturesv1.GetSignatureRequest{Id: r.PathValue("id")})
			return response.GetSignature(), err
		})},
		"PUT /v1/signatures/{id}": {Requirement: write, Handler: handle(func(r *http.Request) (proto.Message, error) {
			request := &signaturesv1.UpdateSignatureRequest{}
			if err := readBody(r, request); err != nil {
				return nil, err
			}
			request.Id = r.PathValue("id")
			response, err := s.UpdateSignature(r.Context(), request)
			return response.GetSignature(), err
		})},
		"DELETE /v1/signatures/{id}": {Requirement: remove, Handler: handle(func(r *http.Request) (proto.Message, error) {
			return s.DeleteSignature(r.Context(), &signaturesv1.DeleteSignatureRequest{Id: r.PathValue("id")})
		})},
		"POST /v1/signatures/{id}/publish": {Requirement: write, Handler: handle(func(r *http.Request) (proto.Message, error) {
			response, err := s.PublishSignature(r.Context(), &signaturesv1.PublishSignatureRequest{Id: r.PathValue("id")})
			return response.GetSignature(), err
		})},
		"POST /v1/signatures/{id}/install": {Requirement: keyauth.Scope("emails:write"), Handler: handle(func(r *http.Request) (proto.Message, error) {
			request := &signaturesv1.InstallSignatureRequest{}
			if err := readBody(r, request); err != nil {
				return nil, err
			}
			request.Id = r.PathValue("id")
			response, err := s.InstallSignature(r.Context(), request)
			return response.GetSignature(), err
		})},
		"GET /healthz": {Requirement: keyauth.Public(), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
		})},
	}})
}

// readBody reads a message from a JSON body.
func readBody(r *http.Request, message proto.Message) error {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 2*maxContent))
	if err != nil {
		return status.Error(codes.InvalidArgument, "the body is too large or was cut off")
	}
	if err := protojson.Unmarshal(body, message); err != nil {
		return status.Error(codes.InvalidArgument, "the body is not what this method takes")
	}
	return nil
}

// handle turns a function into a handler that answers in JSON.
func handle(answer func(r *http.Request) (proto.Message, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		message, err := answer(r)
		var body []byte
		code := http.StatusOK
		if err == nil {
			body, err = protojson.Marshal(message)
		}
		if err != nil {
			code, body = errorBody(err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		w.Write(body) //nolint:errcheck // nobody could be told
	})
}

// errorBody returns an error in Scribe's shape.
func errorBody(err error) (code int, body []byte) {
	known := map[codes.Code]struct {
		code       int
		kind, name string
	}{
		codes.InvalidArgument:    {http.StatusBadRequest, "invalid_request_error", "invalid_argument"},
		codes.NotFound:           {http.StatusNotFound, "invalid_request_error", "not_found"},
		codes.FailedPrecondition: {http.StatusConflict, "invalid_request_error", "failed_precondition"},
	}
	answer, ok := known[status.Code(err)]
	message := status.Convert(err).Message()
	if !ok {
		answer.code, answer.kind, answer.name, message = http.StatusInternalServerError, "api_error", "internal", "internal error"
	}
	body, err = json.Marshal(map[string]any{"error": map[string]string{"type": answer.kind, "code": answer.name, "message": message}})
	if err != nil {
		return http.StatusInternalServerError, nil
	}
	return answer.code, body
}
