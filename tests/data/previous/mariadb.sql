CREATE TABLE `appliances` (
  `id` binary(16) NOT NULL,
  `tenant` varchar(128) NOT NULL,
  `name` varchar(128) NOT NULL,
  `driver` varchar(128) NOT NULL,
  `placement_key` longtext NOT NULL,
  `labels` longtext NOT NULL,
  `spec` longtext NOT NULL,
  `generation` bigint(20) NOT NULL,
  `revision` bigint(20) NOT NULL,
  `deleting` tinyint(1) NOT NULL,
  `created_ns` bigint(20) NOT NULL,
  `updated_ns` bigint(20) NOT NULL,
  `written_term` bigint(20) NOT NULL DEFAULT 0,
  PRIMARY KEY (`id`),
  UNIQUE KEY `appliances_tenant_name` (`tenant`,`name`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `appliances` VALUES (x'09FEA641BAE2408D99F9C9FD9CB8CEB7','default','simulated','simulated','09fea641-bae2-408d-99f9-c9fd9cb8ceb7','{}','{"replicas":1,"kind":{"custom":{"command":"simulated","args":[],"env":{},"probe":"tcp"}}}','1','0','0','1795977262715507735','1795977262715507735','1');
INSERT INTO `appliances` VALUES (x'126815BC706C43A6848902C2595C7D52','default','failing','process','126815bc-706c-43a6-8489-02c2595c7d52','{}','{"replicas":1,"probe_interval":{"secs":1,"nanos":0},"kind":{"custom":{"command":"false","args":["-m","http.server","{port}","--bind","127.0.0.1"],"env":{},"port":17815,"probe":{"http":{"path":"/"}}}}}','1','0','0','1795977262705600037','1795977262705600037','1');
INSERT INTO `appliances` VALUES (x'331F6F2FCD494150947EFAD54FACE6FE','other','tcp','process','331f6f2f-cd49-4150-947e-fad54face6fe','{}','{"replicas":1,"probe_interval":{"secs":1,"nanos":0},"kind":{"custom":{"command":"python3","args":["-m","http.server","{port}","--bind","127.0.0.1"],"env":{},"port":17814,"probe":"tcp"}}}','1','0','0','1795977262703449202','1795977262703449202','1');
INSERT INTO `appliances` VALUES (x'5BDFB2A06FB64ADEB689239146F55AC3','default','moved-1','process','5bdfb2a0-6fb6-4ade-b689-239146f55ac3','{}','{"replicas":1,"probe_interval":{"secs":1,"nanos":0},"kind":{"custom":{"command":"python3","args":["-m","http.server","{port}","--bind","127.0.0.1"],"env":{},"port":17818,"probe":{"http":{"path":"/"}}}}}','1','0','0','1795977262711500493','1795977262711500493','1');
INSERT INTO `appliances` VALUES (x'6A204215E57F435BB5FADF5985FFD40C','default','moved-2','process','6a204215-e57f-435b-b5fa-df5985ffd40c','{}','{"replicas":1,"probe_interval":{"secs":1,"nanos":0},"kind":{"custom":{"command":"python3","args":["-m","http.server","{port}","--bind","127.0.0.1"],"env":{},"port":17819,"probe":{"http":{"path":"/"}}}}}','1','0','0','1795977262713574125','1795977262713574125','1');
INSERT INTO `appliances` VALUES (x'74F1CC60A44F4A77BD84B1C7749C424C','default','updated','process','74f1cc60-a44f-4a77-bd84-b1c7749c424c','{}','{"replicas":1,"probe_interval":{"secs":1,"nanos":0},"kind":{"custom":{"command":"python3","args":["-m","http.server","{port}","--bind","127.0.0.1"],"env":{"WORD":"two"},"port":17816,"probe":{"http":{"path":"/"}}}}}','3','0','0','1795977262707573331','1795977272139671199','1');
INSERT INTO `appliances` VALUES (x'91E0ED09474745738C418B4438BE0636','default','unplaced','simulated','91e0ed09-4747-4573-8c41-8b4438be0636','{}','{"replicas":1,"kind":{"custom":{"command":"simulated","args":[],"env":{},"probe":"tcp"}}}','1','0','0','1795977274975040021','1795977274975040021','1');
INSERT INTO `appliances` VALUES (x'DC7FE76ADD7344579329D79490B1B176','default','rebuilt','process','dc7fe76a-dd73-4457-9329-d79490b1b176','{}','{"replicas":1,"probe_interval":{"secs":1,"nanos":0},"kind":{"custom":{"command":"python3","args":["-m","http.server","{port}","--bind","127.0.0.1"],"env":{},"port":17817,"probe":{"http":{"path":"/"}}}}}','2','1','0','1795977262709619642','1795977272145993473','1');
INSERT INTO `appliances` VALUES (x'DD51BFB7570E4EAE994F2558BE48BC6F','default','requested','simulated','dd51bfb7-570e-4eae-994f-2558be48bc6f','{}','{"replicas":1,"kind":{"custom":{"command":"simulated","args":[],"env":{},"probe":"tcp"}}}','1','0','0','1795977262721303736','1795977262721303736','1');
INSERT INTO `appliances` VALUES (x'E3C106CDD02F4DBDB5BC2A12B611EDFE','default','doomed','simulated','e3c106cd-d02f-4dbd-b5bc-2a12b611edfe','{}','{"replicas":1,"kind":{"custom":{"command":"simulated","args":[],"env":{},"probe":"tcp"}}}','2','0','1','1795977262717369711','1795977274972437607','1');
INSERT INTO `appliances` VALUES (x'F2533D5D6C1B4188BC89BE6854340ADA','default','balancer','process','f2533d5d-6c1b-4188-bc89-be6854340ada','{}','{"replicas":1,"probe_interval":{"secs":1,"nanos":0},"kind":{"loadbalancer":{"listeners":[{"name":"http","address":"127.0.0.1","port":17811,"members":[{"address":"127.0.0.1","port":17814}],"health_check":{"interval":{"secs":0,"nanos":200000000},"timeout":{"secs":1,"nanos":0},"fall":2,"rise":1}}]}}}','1','0','0','1795977262697619027','1795977262697619027','1');
INSERT INTO `appliances` VALUES (x'F57A15BE66EC48439D0EC0BE13F31088','default','replicas','process','together','{"owner":"übung","tier":"gold"}','{"replicas":2,"probe_interval":{"secs":1,"nanos":0},"kind":{"custom":{"command":"python3","args":["-m","http.server","{port}","--bind","127.0.0.1"],"env":{},"port":17812,"probe":{"http":{"path":"/"}}}}}','1','0','0','1795977262700842515','1795977262700842515','1');
CREATE TABLE `events` (
  `id` bigint(20) NOT NULL AUTO_INCREMENT,
  `time_ns` bigint(20) NOT NULL,
  `actor` longtext NOT NULL,
  `action` longtext NOT NULL,
  `subject` longtext NOT NULL,
  `detail` longtext NOT NULL,
  PRIMARY KEY (`id`)
) ENGINE=InnoDB AUTO_INCREMENT=19 DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `events` VALUES ('1','1795977262697619027','127.0.0.1:50700','create','f2533d5d-6c1b-4188-bc89-be6854340ada','default/balancer g1');
INSERT INTO `events` VALUES ('2','1795977262700842515','127.0.0.1:50700','create','f57a15be-66ec-4843-9d0e-c0be13f31088','default/replicas g1');
INSERT INTO `events` VALUES ('3','1795977262703449202','127.0.0.1:50700','create','331f6f2f-cd49-4150-947e-fad54face6fe','other/tcp g1');
INSERT INTO `events` VALUES ('4','1795977262705600037','127.0.0.1:50700','create','126815bc-706c-43a6-8489-02c2595c7d52','default/failing g1');
INSERT INTO `events` VALUES ('5','1795977262707573331','127.0.0.1:50700','create','74f1cc60-a44f-4a77-bd84-b1c7749c424c','default/updated g1');
INSERT INTO `events` VALUES ('6','1795977262709619642','127.0.0.1:50700','create','dc7fe76a-dd73-4457-9329-d79490b1b176','default/rebuilt g1');
INSERT INTO `events` VALUES ('7','1795977262711500493','127.0.0.1:50700','create','5bdfb2a0-6fb6-4ade-b689-239146f55ac3','default/moved-1 g1');
INSERT INTO `events` VALUES ('8','1795977262713574125','127.0.0.1:50700','create','6a204215-e57f-435b-b5fa-df5985ffd40c','default/moved-2 g1');
INSERT INTO `events` VALUES ('9','1795977262715507735','127.0.0.1:50700','create','09fea641-bae2-408d-99f9-c9fd9cb8ceb7','default/simulated g1');
INSERT INTO `events` VALUES ('10','1795977262717369711','127.0.0.1:50700','create','e3c106cd-d02f-4dbd-b5bc-2a12b611edfe','default/doomed g1');
INSERT INTO `events` VALUES ('11','1795977262719255692','127.0.0.1:50700','create','1da8525e-5d9a-43cc-996c-977faed3d9ad','default/gone g1');
INSERT INTO `events` VALUES ('12','1795977262721303736','127.0.0.1:50700','create','dd51bfb7-570e-4eae-994f-2558be48bc6f','default/requested g1');
INSERT INTO `events` VALUES ('13','1795977271582678683','127.0.0.1:50700','delete','1da8525e-5d9a-43cc-996c-977faed3d9ad','default/gone g2');
INSERT INTO `events` VALUES ('14','1795977272136526177','127.0.0.1:50700','update','74f1cc60-a44f-4a77-bd84-b1c7749c424c','default/updated g2');
INSERT INTO `events` VALUES ('15','1795977272139671199','127.0.0.1:50700','update','74f1cc60-a44f-4a77-bd84-b1c7749c424c','default/updated g3');
INSERT INTO `events` VALUES ('16','1795977272145993473','127.0.0.1:50700','rebuild','dc7fe76a-dd73-4457-9329-d79490b1b176','default/rebuilt g2');
INSERT INTO `events` VALUES ('17','1795977274972437607','127.0.0.1:50700','delete','e3c106cd-d02f-4dbd-b5bc-2a12b611edfe','default/doomed g2');
INSERT INTO `events` VALUES ('18','1795977274975040021','127.0.0.1:50700','create','91e0ed09-4747-4573-8c41-8b4438be0636','default/unplaced g1');
CREATE TABLE `grants` (
  `term` bigint(20) NOT NULL,
  `batch` bigint(20) NOT NULL,
  `part` int(11) NOT NULL,
  `format` int(11) NOT NULL,
  `data` longblob NOT NULL,
  PRIMARY KEY (`term`,`batch`,`part`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `grants` VALUES ('1','15','0','1',x'011DDBA4E047437CC10312010000000000000001000000000000007731227265636F726465643A2F746D702F7275672D7265636F726465642F776F726B657273120200000000000000010000000000000077330C01126815BC706C43A6848902C2595C7D520001010101016A204215E57F435BB5FADF5985FFD40C0001020101015BDFB2A06FB64ADEB689239146F55AC300010301010174F1CC60A44F4A77BD84B1C7749C424C000104010101331F6F2FCD494150947EFAD54FACE6FE000105010101DC7FE76ADD7344579329D79490B1B176000106010101F2533D5D6C1B4188BC89BE6854340ADA000107010101F57A15BE66EC48439D0EC0BE13F31088000108010105DD51BFB7570E4EAE994F2558BE48BC6F0201090080BCC1960B05E3C106CDD02F4DBDB5BC2A12B611EDFE02010A0080BCC1960B0509FEA641BAE2408D99F9C9FD9CB8CEB702010B0080BCC1960B051DA8525E5D9A43CC996C977FAED3D9AD02010C0080BCC1960B');
INSERT INTO `grants` VALUES ('1','28','0','1',x'01B35701784D5D16880001031DA8525E5D9A43CC996C977FAED3D9AD');
INSERT INTO `grants` VALUES ('1','33','0','1',x'01B27DB015E2BDEAC00212030000000000000001000000000000007732227265636F726465643A2F746D702F7275672D7265636F726465642F776F726B65727304026A204215E57F435BB5FADF5985FFD40C016A204215E57F435BB5FADF5985FFD40C00010D0101025BDFB2A06FB64ADEB689239146F55AC3015BDFB2A06FB64ADEB689239146F55AC300010E0101');
INSERT INTO `grants` VALUES ('1','35','0','1',x'019C2F242EC7342A0C0212030000000000000001000000000000007732227265636F726465643A2F746D702F7275672D7265636F726465642F776F726B6572730202DC7FE76ADD7344579329D79490B1B17601DC7FE76ADD7344579329D79490B1B17600010F0101');
INSERT INTO `grants` VALUES ('1','43','0','1',x'0124BDC161C0812A250212030000000000000001000000000000007732227265636F726465643A2F746D702F7275672D7265636F726465642F776F726B6572730402126815BC706C43A6848902C2595C7D5201126815BC706C43A6848902C2595C7D5200011001010274F1CC60A44F4A77BD84B1C7749C424C0174F1CC60A44F4A77BD84B1C7749C424C0001110101');
INSERT INTO `grants` VALUES ('1','45','0','1',x'0174BF0EFFC8CB6FF00212030000000000000001000000000000007732227265636F726465643A2F746D702F7275672D7265636F726465642F776F726B6572730402331F6F2FCD494150947EFAD54FACE6FE01331F6F2FCD494150947EFAD54FACE6FE000112010102F2533D5D6C1B4188BC89BE6854340ADA01F2533D5D6C1B4188BC89BE6854340ADA0001130101');
INSERT INTO `grants` VALUES ('1','47','0','1',x'011D33B61794F21C160212030000000000000001000000000000007732227265636F726465643A2F746D702F7275672D7265636F726465642F776F726B6572730202F57A15BE66EC48439D0EC0BE13F3108801F57A15BE66EC48439D0EC0BE13F310880001140101');
INSERT INTO `grants` VALUES ('1','54','0','1',x'01968E1D0D3D9104320212040000000000000001000000000000007731227265636F726465643A2F746D702F7275672D7265636F726465642F776F726B6572730402126815BC706C43A6848902C2595C7D5201126815BC706C43A6848902C2595C7D5200011501010274F1CC60A44F4A77BD84B1C7749C424C0174F1CC60A44F4A77BD84B1C7749C424C0001160101');
INSERT INTO `grants` VALUES ('1','56','0','1',x'01F8E18F0EA682048F0212040000000000000001000000000000007731227265636F726465643A2F746D702F7275672D7265636F726465642F776F726B6572730202331F6F2FCD494150947EFAD54FACE6FE01331F6F2FCD494150947EFAD54FACE6FE0001170101');
CREATE TABLE `leadership` (
  `id` int(11) NOT NULL,
  `term` bigint(20) NOT NULL,
  `batch` bigint(20) NOT NULL,
  `coordinator` varchar(128) NOT NULL,
  `since_ns` bigint(20) NOT NULL,
  PRIMARY KEY (`id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `leadership` VALUES ('1','1','65','c1','1795977262654372937');
CREATE TABLE `members` (
  `worker` varchar(128) NOT NULL,
  `incarnation` varchar(32) NOT NULL,
  `profile` longtext NOT NULL,
  PRIMARY KEY (`worker`,`incarnation`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `members` VALUES ('w1','00000000000000010000000000000004','{"weight":1,"zone":"","host":"recorded","state_dir":"/tmp/rug-recorded/workers","drivers":["process"],"version":"0.1.0","pid":1659,"lease":{"secs":20,"nanos":0},"departed":false}');
INSERT INTO `members` VALUES ('w2','00000000000000010000000000000003','{"weight":1,"zone":"","host":"recorded","state_dir":"/tmp/rug-recorded/workers","drivers":["process"],"version":"0.1.0","pid":1547,"lease":{"secs":20,"nanos":0},"departed":false}');
INSERT INTO `members` VALUES ('w3','00000000000000010000000000000002','{"weight":1,"zone":"","host":"recorded","drivers":["simulated"],"version":"0.1.0","pid":1071,"lease":{"secs":2,"nanos":0},"holds":{"simulated":{"secs":3,"nanos":0}},"departed":true}');
CREATE TABLE `moves` (
  `id` bigint(20) NOT NULL AUTO_INCREMENT,
  `term` bigint(20) NOT NULL,
  `number` bigint(20) NOT NULL,
  `data` longblob NOT NULL,
  PRIMARY KEY (`id`),
  KEY `moves_rebalance` (`term`,`number`)
) ENGINE=InnoDB AUTO_INCREMENT=8 DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `moves` VALUES ('1','1','1',x'01AB446817C8F28C6D0302773102773228697473206F776E65722068656C64206D6F7265207468616E207468652062616E6420616C6C6F777302016A204215E57F435BB5FADF5985FFD40C0100010201ED988C8284FAA5F618015BDFB2A06FB64ADEB689239146F55AC30100010201FF948D8284FAA5F618');
INSERT INTO `moves` VALUES ('2','1','1',x'019600CEB86794706A0302773102773228697473206F776E65722068656C64206D6F7265207468616E207468652062616E6420616C6C6F77730101DC7FE76ADD7344579329D79490B1B1760100010201F1ACEF8484FAA5F618');
INSERT INTO `moves` VALUES ('3','1','2',x'0124785803341EE0570302773102773210697473206F776E657220647261696E730201126815BC706C43A6848902C2595C7D52010001020180C1ECF185FAA5F6180174F1CC60A44F4A77BD84B1C7749C424C010001020187A2EDF185FAA5F618');
INSERT INTO `moves` VALUES ('4','1','2',x'01A1835151C7AEA4A80302773102773210697473206F776E657220647261696E730201331F6F2FCD494150947EFAD54FACE6FE0100010201F4CFE1F385FAA5F61801F2533D5D6C1B4188BC89BE6854340ADA0100010201AFBBE2F385FAA5F618');
INSERT INTO `moves` VALUES ('5','1','2',x'010B736D237C6EC4250302773102773210697473206F776E657220647261696E730101F57A15BE66EC48439D0EC0BE13F3108801000102019CCFC8F585FAA5F618');
INSERT INTO `moves` VALUES ('6','1','3',x'016594AA6246162E280302773202773128697473206F776E65722068656C64206D6F7265207468616E207468652062616E6420616C6C6F77730201126815BC706C43A6848902C2595C7D520100010201A1AE988289FAA5F6180174F1CC60A44F4A77BD84B1C7749C424C0100010201C284998289FAA5F618');
INSERT INTO `moves` VALUES ('7','1','3',x'01170E609DD6B09D1C0302773202773128697473206F776E65722068656C64206D6F7265207468616E207468652062616E6420616C6C6F77730101331F6F2FCD494150947EFAD54FACE6FE0100010201DBA0828489FAA5F618');
CREATE TABLE `progress` (
  `appliance` binary(16) NOT NULL,
  `progress` longtext NOT NULL,
  `hold_ns` bigint(20) NOT NULL,
  PRIMARY KEY (`appliance`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `progress` VALUES (x'126815BC706C43A6848902C2595C7D52','{"failed_boots":5,"ends":0,"attempts":[5],"wait":{"secs":3598,"nanos":111178152},"cooling":true,"journal":[]}','0');
INSERT INTO `progress` VALUES (x'331F6F2FCD494150947EFAD54FACE6FE','{"failed_boots":0,"ends":0,"attempts":[1],"wait":{"secs":0,"nanos":0},"cooling":false,"journal":[]}','0');
INSERT INTO `progress` VALUES (x'5BDFB2A06FB64ADEB689239146F55AC3','{"failed_boots":0,"ends":0,"attempts":[1],"wait":{"secs":0,"nanos":0},"cooling":false,"journal":[]}','0');
INSERT INTO `progress` VALUES (x'6A204215E57F435BB5FADF5985FFD40C','{"failed_boots":0,"ends":0,"attempts":[1],"wait":{"secs":0,"nanos":0},"cooling":false,"journal":[]}','0');
INSERT INTO `progress` VALUES (x'74F1CC60A44F4A77BD84B1C7749C424C','{"failed_boots":0,"ends":0,"attempts":[2],"wait":{"secs":0,"nanos":0},"cooling":false,"journal":[]}','0');
INSERT INTO `progress` VALUES (x'DC7FE76ADD7344579329D79490B1B176','{"failed_boots":0,"ends":0,"attempts":[1],"wait":{"secs":0,"nanos":0},"cooling":false,"journal":[]}','0');
INSERT INTO `progress` VALUES (x'F2533D5D6C1B4188BC89BE6854340ADA','{"failed_boots":0,"ends":0,"attempts":[1],"wait":{"secs":0,"nanos":0},"cooling":false,"journal":[]}','0');
INSERT INTO `progress` VALUES (x'F57A15BE66EC48439D0EC0BE13F31088','{"failed_boots":0,"ends":0,"attempts":[1,1],"wait":{"secs":0,"nanos":0},"cooling":false,"journal":[]}','0');
CREATE TABLE `rebalances` (
  `term` bigint(20) NOT NULL,
  `number` bigint(20) NOT NULL,
  `cause` longtext NOT NULL,
  `trace_id` varchar(128) NOT NULL,
  `started_ns` bigint(20) NOT NULL,
  `ended_ns` bigint(20) DEFAULT NULL,
  `outcome` varchar(128) NOT NULL,
  `moves` bigint(20) NOT NULL,
  `done` bigint(20) NOT NULL,
  PRIMARY KEY (`term`,`number`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `rebalances` VALUES ('1','1','joined: w2','74f37cc3bb04aaa867a3b7a27bcbe69b','1795977272094792989','1795977272106951923','completed','3','3');
INSERT INTO `rebalances` VALUES ('1','2','draining: w1','3acf3528c90031cba3e6c42a0599c6fe','1795977272598770516','1795977272611728789','completed','5','5');
INSERT INTO `rebalances` VALUES ('1','3','joined: w1','9a242820b31e1915d6f1d3b3842a8d1d','1795977273439244495','1795977273447345856','completed','3','3');
CREATE TABLE `requests` (
  `id` binary(16) NOT NULL,
  `digest` longblob NOT NULL,
  `appliance` binary(16) NOT NULL,
  `time_ns` bigint(20) NOT NULL,
  PRIMARY KEY (`id`),
  KEY `requests_time` (`time_ns`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `requests` VALUES (x'7A5A961796634F4C9EF7C3A67C6C544E',x'F11EEDAC0BC45E1CBA2463FEDB56CAEA',x'DD51BFB7570E4EAE994F2558BE48BC6F','1795977262721303736');
CREATE TABLE `seaql_migrations` (
  `version` varchar(255) NOT NULL,
  `applied_at` bigint(20) NOT NULL,
  PRIMARY KEY (`version`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;
INSERT INTO `seaql_migrations` VALUES ('m0001_first','1795977262');
INSERT INTO `seaql_migrations` VALUES ('m0002_written_term','1795977262');
CREATE TABLE `statuses` (
  `appliance` binary(16) NOT NULL,
  `phase` varchar(128) NOT NULL,
  `observed_generation` bigint(20) NOT NULL,
  `failed_boots` bigint(20) NOT NULL,
  `instances` longtext NOT NULL,
  `last_error` longtext DEFAULT NULL,
  `time_ns` bigint(20) NOT NULL,
  PRIMARY KEY (`appliance`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `statuses` VALUES (x'09FEA641BAE2408D99F9C9FD9CB8CEB7','Configured','1','0','[{"ordinal":0,"name":"09fea641-bae2-408d-99f9-c9fd9cb8ceb7-0-1","alive":true,"pid":null,"started_at_unix_ms":1795977263171,"address":null,"configured":1}]',NULL,'1795977263273763547');
INSERT INTO `statuses` VALUES (x'126815BC706C43A6848902C2595C7D52','Error','1','5','[]',NULL,'1795977273444626251');
INSERT INTO `statuses` VALUES (x'331F6F2FCD494150947EFAD54FACE6FE','Configured','1','0','[{"ordinal":0,"name":"331f6f2f-cd49-4150-947e-fad54face6fe-0-1","alive":true,"pid":1152,"started_at_unix_ms":1795977263173,"address":"127.0.0.1:17814","configured":1}]',NULL,'1795977273450994407');
INSERT INTO `statuses` VALUES (x'5BDFB2A06FB64ADEB689239146F55AC3','Configured','1','0','[{"ordinal":0,"name":"5bdfb2a0-6fb6-4ade-b689-239146f55ac3-0-1","alive":true,"pid":1155,"started_at_unix_ms":1795977263173,"address":"127.0.0.1:17818","configured":1}]',NULL,'1795977272103786523');
INSERT INTO `statuses` VALUES (x'6A204215E57F435BB5FADF5985FFD40C','Configured','1','0','[{"ordinal":0,"name":"6a204215-e57f-435b-b5fa-df5985ffd40c-0-1","alive":true,"pid":1153,"started_at_unix_ms":1795977263173,"address":"127.0.0.1:17819","configured":1}]',NULL,'1795977272103795019');
INSERT INTO `statuses` VALUES (x'74F1CC60A44F4A77BD84B1C7749C424C','Configured','3','0','[{"ordinal":0,"name":"74f1cc60-a44f-4a77-bd84-b1c7749c424c-0-2","alive":true,"pid":1562,"started_at_unix_ms":1795977272157,"address":"127.0.0.1:17816","configured":3}]',NULL,'1795977273445910799');
INSERT INTO `statuses` VALUES (x'DC7FE76ADD7344579329D79490B1B176','Configured','2','0','[{"ordinal":0,"name":"dc7fe76a-dd73-4457-9329-d79490b1b176-0-2","alive":true,"pid":1563,"started_at_unix_ms":1795977272163,"address":"127.0.0.1:17817","configured":2}]',NULL,'1795977272577937411');
INSERT INTO `statuses` VALUES (x'DD51BFB7570E4EAE994F2558BE48BC6F','Configured','1','0','[{"ordinal":0,"name":"dd51bfb7-570e-4eae-994f-2558be48bc6f-0-1","alive":true,"pid":null,"started_at_unix_ms":1795977263171,"address":null,"configured":1}]',NULL,'1795977263273477213');
INSERT INTO `statuses` VALUES (x'E3C106CDD02F4DBDB5BC2A12B611EDFE','Configured','1','0','[{"ordinal":0,"name":"e3c106cd-d02f-4dbd-b5bc-2a12b611edfe-0-1","alive":true,"pid":null,"started_at_unix_ms":1795977263171,"address":null,"configured":1}]',NULL,'1795977263273763547');
INSERT INTO `statuses` VALUES (x'F2533D5D6C1B4188BC89BE6854340ADA','Configured','1','0','[{"ordinal":0,"name":"f2533d5d-6c1b-4188-bc89-be6854340ada-0-1","alive":true,"pid":1165,"started_at_unix_ms":1795977263174,"address":"127.0.0.1:17811","configured":1}]',NULL,'1795977272611691389');
INSERT INTO `statuses` VALUES (x'F57A15BE66EC48439D0EC0BE13F31088','Configured','1','0','[{"ordinal":0,"name":"f57a15be-66ec-4843-9d0e-c0be13f31088-0-1","alive":true,"pid":1156,"started_at_unix_ms":1795977263172,"address":"127.0.0.1:17812","configured":1},{"ordinal":1,"name":"f57a15be-66ec-4843-9d0e-c0be13f31088-1-1","alive":true,"pid":1263,"started_at_unix_ms":1795977263321,"address":"127.0.0.1:17813","configured":1}]',NULL,'1795977272620304540');
CREATE TABLE `workers` (
  `worker` varchar(128) NOT NULL,
  `seen_ns` bigint(20) NOT NULL,
  PRIMARY KEY (`worker`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
INSERT INTO `workers` VALUES ('w1','1795977272938816494');
INSERT INTO `workers` VALUES ('w2','1795977271594126816');
INSERT INTO `workers` VALUES ('w3','1795977274969977925');
