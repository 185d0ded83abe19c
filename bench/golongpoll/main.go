// golongpoll as its documentation sets it up, for `python -m bench peers`: long polls at /events, POST /publish.
package main

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/jcuga/golongpoll"
)

func main() {
	manager, err := golongpoll.StartLongpoll(golongpoll.Options{
		MaxLongpollTimeoutSeconds: 3600,
		MaxEventBufferSize:        250,
		EventTimeToLiveSeconds:    golongpoll.FOREVER,
	})
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/events", manager.SubscriptionHandler)
	http.HandleFunc("/publish", func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err == nil {
			err = manager.Publish("bench", json.RawMessage(data))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
